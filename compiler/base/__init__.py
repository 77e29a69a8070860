"""The ground floor: errors, options, records and names that everything else reads; imports nothing of llmc."""
