"""Memory and bytes of a run before it starts, and the words for a run that did not fit."""
