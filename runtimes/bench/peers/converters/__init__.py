"""Scripts that run in a peer's own interpreter: ``SCRIPT SOURCE OUTPUT TYPE SOURCE-OF-THE-PEER``.

They import nothing of llmc.
"""
