"""What ``onelora predict`` does with pictures or questions, a module per task; `backbones.table.TASKS` names them."""
