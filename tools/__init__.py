"""Operators' and researchers' scripts, run from a checkout: ``python -m tools.NAME``. Not part of the wheel."""
