"""Memory, bytes and seconds of a run before it starts, and the message if one did not fit."""
