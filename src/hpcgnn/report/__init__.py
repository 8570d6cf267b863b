"""Reports of run directories: text, figures and an HTML page."""
