"""What a bundle costs in bytes and arithmetic, compared with LoRA: accounting, arithmetic, measurement, pages. numpy
only.
"""
