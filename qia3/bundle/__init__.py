"""What a device gets: the room that owns a bundle and all that is in it. numpy and ONNX Runtime, no torch."""
