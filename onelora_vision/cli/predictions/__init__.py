"""What ``onelora predict`` does with pictures, a module per task; `backbones.table.TASKS` names them."""
