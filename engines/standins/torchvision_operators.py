# Put before torchvision's own imports by kvlingua's recipe for SGLang. Torchvision's library of operators doesn't load
# beside a CPU torch if it was built for CUDA, and torchvision then stumbles over two operators that nobody has defined.
# SGLang imports it but never calls these.
def _define_missing_operators() -> object:
    import pathlib

    import torch

    try:
        torch.ops.load_library(str(pathlib.Path(__file__).with_name("_C.so")))
        return None
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


_kvlingua_operators = _define_missing_operators()  # kept: the definitions live as long as this object
