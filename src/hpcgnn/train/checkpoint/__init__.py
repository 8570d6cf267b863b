"""Checkpoints: the file, the folder of files, and the state that they hold."""
