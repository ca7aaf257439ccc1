"""`had demo`: minutes of pre-training on bundled real data that show learning, or fail."""

from had.demo.run import DemoOptions, DemoResult, demo

__all__ = ["DemoOptions", "DemoResult", "demo"]
