"""IA³ (Liu et al. 2022, arXiv:2205.05638): roles of layers, vectors, folding."""
