"""Who is alive, where each rank is, and how a job ends."""
