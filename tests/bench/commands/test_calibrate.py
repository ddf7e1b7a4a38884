def test_a_calibration_is_of_runs_that_are_there(cli):
    done = cli("calibrate", "nothing.json")
    assert done.returncode == 2
    assert "There is no nothing.json" in done.stderr
