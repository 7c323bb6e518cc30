"""What self-distillation objectives share: heads, centring, teacher, schedules."""
