"""4-bit number formats, one file each: layout, pack, unpack, quantise, dequantise, fold. numpy only."""
