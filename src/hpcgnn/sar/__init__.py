"""Sequential aggregation and rematerialization over the ranks (Mostafa, MLSys 2022)."""
