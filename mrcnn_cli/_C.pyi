"""How the library was built, and run-length encodings of masks (csrc/bindings.cpp)."""

cuda: bool
cuda_version: str
cuda_archs: str
compiler: str
torch_version: str

def rle_counts(counts: bytes) -> bytes: ...
def rle_compress(runs: bytes) -> bytes: ...
def rle_from_edges(edges: bytes, starts: bytes, pixels: int) -> list[bytes]: ...
