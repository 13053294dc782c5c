"""Names that SGLang imports at start for Mamba models; none can be called here."""

from sgl_kernel import __getattr__ as __getattr__
