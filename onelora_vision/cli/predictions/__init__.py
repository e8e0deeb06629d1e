"""The implementations of ``onelora predict``, one module per task, as listed in `backbones.table.TASKS`."""
