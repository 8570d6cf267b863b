"""graph.h5 and partition files: schema, checked reading, safe writing, importers."""
