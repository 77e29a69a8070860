"""TensorRT-RTX for the tests: its wheels are in the dev extra wherever they exist, and there nothing is skipped."""

from __future__ import annotations

import platform
import sys

import pytest

HAS_WHEELS = sys.platform == "linux" and platform.machine() == "x86_64"
needs_tensorrt_rtx = pytest.mark.skipif(not HAS_WHEELS, reason="TensorRT-RTX has no wheels for this platform")
