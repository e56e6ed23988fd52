from otter.test_files import test_case

from psd_mini.checks import check_vsd

OK_FORMAT, name, points = False, "q_vsd", None


@test_case(name="most of it is right", points=1)
def test_most(vsd):
    report = check_vsd(vsd)
    assert report.score >= 0.5, report


@test_case(name="all of it is right", points=3)
def test_all(vsd):
    check_vsd(vsd).require()
