"""Checkpoints: the file, the folder of files, the state they hold."""
