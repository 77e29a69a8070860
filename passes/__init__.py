"""llmc.passes: graph passes, one file each; ``pipeline`` gives their order per target, ``runner`` runs them."""
