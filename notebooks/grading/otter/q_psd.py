from otter.test_files import test_case

from psd_mini.checks import check_psd

OK_FORMAT, name, points = False, "q_psd", None


@test_case(name="most of it is right", points=1)
def test_most(psd):
    report = check_psd(psd)
    assert report.score >= 0.5, report


@test_case(name="all of it is right", points=3)
def test_all(psd):
    check_psd(psd).require()
