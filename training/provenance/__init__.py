"""What a published version tells of its origin: metadata in the graph, the bill of materials, the commit."""
