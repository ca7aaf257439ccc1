"""Training: one loop, its objectives, and the folder a run leaves behind."""
