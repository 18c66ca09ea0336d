import nbformat as nbf, sys
name=sys.argv[1]
nb=nbf.v4.new_notebook(); cells=[]
def md(t): cells.append(nbf.v4.new_markdown_cell(t.strip("\n")))
def code(t): cells.append(nbf.v4.new_code_cell(t.strip("\n")))
exec(open(f"/tmp/nbs/{name}.py").read())
nb.cells=cells
for i,c in enumerate(cells): c["id"]=f"c{i}"
nb.metadata={"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"},"language_info":{"name":"python"}}
nbf.write(nb,f"/work/main/notebooks/{name}.ipynb")
