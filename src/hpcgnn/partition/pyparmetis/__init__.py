"""ParMETIS through its own C interface: find it, load it, cut graphs over any communicator."""
