"""How messages leave and reach a rank's memory."""
