"""What a bundle costs in bytes and arithmetic, beside LoRA: accounting, arithmetic, measurement, rendering. numpy only."""
