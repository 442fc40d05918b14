"""What `roboflamingo ablate` is made of: grids of trainings and evaluations, how they run, and what they come to."""
