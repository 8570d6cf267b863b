"""What is learned: targets, loss, metrics."""
