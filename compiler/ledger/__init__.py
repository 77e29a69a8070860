"""What each pass cost, measured while passes run, and the node where one cost more than it says."""
