"""vLLM's entry point (group vllm.general_plugins), called in every process of an engine, more than once: idempotent
and light."""

from contextlib import suppress


def register() -> None:
    """Make the connector known to vLLM as `KVLingua`. Its module is imported when an engine asks for it."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    with suppress(ValueError):  # it is registered already
        KVConnectorFactory.register_connector("KVLingua", "kvlingua.adapters.vllm.connector", "KVLinguaConnector")
