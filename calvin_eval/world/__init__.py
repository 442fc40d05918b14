"""CALVIN's play table, embedded: four scenes, the robot, two cameras, on pybullet physics."""
