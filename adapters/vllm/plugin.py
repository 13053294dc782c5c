"""vLLM's entry point (group vllm.general_plugins), called in every process of an engine, more than once:
idempotent and light."""

NAME = "KVLingua"


def register() -> None:
    """Make the connector known to vLLM as `KVLingua`. Its module is imported when an engine asks for it."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, "kvlingua.adapters.vllm.connector", "KVLinguaConnector")
