"""Built-in models, from layers of `nn`."""
