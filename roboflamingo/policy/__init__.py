"""What acts: RoboFlamingo, what it reads, the actions it gives, and its control in closed or open loop."""
