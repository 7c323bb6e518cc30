from terra_jax.training.metrics import CsvLog, Progress, read_csv


def rows(path):
    return [(row["step"], row["loss"]) for row in read_csv(path)]


def test_resuming_cuts_what_lies_beyond_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.csv"
    log = CsvLog(path)
    for step in range(1, 6):
        log.write({"step": step, "loss": step / 10})
    log.close()
    with path.open("a") as file:
        file.write("6,0.")  # killed in the middle of a write
    log = CsvLog(path, step=3)
    assert rows(path) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    log.write({"step": 4, "loss": 4.5})
    log.close()
    assert rows(path) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 4.5)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,lo")
    log = CsvLog(path)
    log.write({"step": 1, "loss": 0.5})
    log.close()
    assert rows(path) == [(1, 0.5)]


def test_a_new_figure_gets_a_column(tmp_path):
    path = tmp_path / "evaluations.csv"
    log = CsvLog(path)
    log.write({"step": 1, "knn": 0.5})
    log.write({"step": 2, "knn": 0.6, "probe": 0.7})
    log.close()
    assert read_csv(path) == [{"step": 1, "knn": 0.5}, {"step": 2, "knn": 0.6, "probe": 0.7}]


def test_floats_survive_exactly(tmp_path):
    value = 0.1 + 0.2
    log = CsvLog(tmp_path / "metrics.csv")
    log.write({"step": 1, "loss": value})
    log.close()
    assert rows(tmp_path / "metrics.csv") == [(1, value)]


def test_output_that_is_no_terminal_gets_lines_now_and_then(capsys):
    progress = Progress(steps=50, start=0, batch_size=4)
    for step in range(1, 51):
        progress.update(step, loss=1.0 / step, seconds=0.5, waited=0.1)
    progress.say("done")
    progress.close()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert out[0].startswith("step 1/50  loss 1.0000  8.0 samples/s  data wait 20%  left 00:2")
    assert out[1].startswith("step 50/50") and out[2] == "done"
