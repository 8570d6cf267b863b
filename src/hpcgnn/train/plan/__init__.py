"""Memory, bytes and seconds of a run before it starts, and the message of one that did not fit."""
