"""CALVIN's play table, embedded: four scenes, the robot, two cameras, on pybullet physics.

Import `PlayTable` from `calvin_eval.worlds.playtable.world` and geometry, which needs no simulator, from
`calvin_eval.worlds.playtable.scenes`.
"""
