"""Texts that tokenizers treat differently from one another."""

from __future__ import annotations

AWKWARD = (
    "",
    " ",
    "a",
    " leading",
    "trailing ",
    "  two  spaces   three ",
    "tab\tand\t\ttabs",
    "line\nlines\n\n\nand\r\nreturns\r",
    "\n\n",
    "\U0001f600\U0001f469\u200d\U0001f4bb\U0001f1e9\U0001f1ea",
    "e\u0301 and \u00e9, Z\u0351\u036b\u0343\u036aalgo",
    "\u65e5\u672c\u8a9e\u3068\u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u202eright\u202c",
    "\x00\x01\x07\x1b[0m\x7f",
    "\u00a0\u2003\u3000\u200b\ufeff",
    "a literal \u2581 bar",
    "\ufb01 \u2460 \u00bd \uff21",
    "1234567890 3.14159 1,000,000",
    "it's we'll I'D don'T",
    "def f(x):\n    return x  # \\n",
    "<zz>",
    "a<zz>b <zz> c",
    "<zz><zz>",
    " <|im_start|>user\nhi<|im_end|>\n",
    "</s> y <s> <unk> <pad>",
    "x" * 600,
    "ab" * 300 + " " + "\u00fc" * 300,
)
