"""Tests, from cheap to real: unit, contract and data; host, engine and gpu need more than a checkout."""
