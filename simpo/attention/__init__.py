"""Attention over shared packs: who may see whom (`layout`), the kernels that compute it, and which one runs."""
