title = 'für die Übung'
def sds(x):
    return x
