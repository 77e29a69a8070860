"""An artifact as a directory on disk: written whole or not at all, with a manifest and golden data."""
