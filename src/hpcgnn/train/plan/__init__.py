"""Memory, bytes and seconds of a run before it starts, and the words for one that did not fit."""
