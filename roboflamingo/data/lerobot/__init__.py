"""The format LeRobotDataset v3.0: folders of parquet tables and mp4 videos, read and written without lerobot."""
