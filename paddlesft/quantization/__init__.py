"""From a model directory to one whose Linear layers are quantized: calibration, methods, report."""
