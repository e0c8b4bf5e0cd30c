"""Workarounds for the libraries below: one small module each, with the upstream symbol, the version seen and a test
that fails when upstream has fixed it, so that the workaround can be retired."""
