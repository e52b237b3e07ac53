// Ollama's own importer on one file or folder; built and called by ollama_import.py.
//
//	convert FOLDER OUT      a folder of safetensors to a GGUF file
//	parse MODELFILE         what `ollama create` would ask for
//	render MODELFILE        conversations from stdin through its TEMPLATE: JSON, a list of lists of messages
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/convert"
	"github.com/ollama/ollama/parser"
	"github.com/ollama/ollama/template"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(what string, paths []string) error {
	if what == "convert" {
		out, err := os.Create(paths[1])
		if err != nil {
			return err
		}
		defer out.Close()
		return convert.ConvertModel(os.DirFS(paths[0]), out)
	}
	request, err := read(paths[0])
	if err != nil {
		return err
	}
	if what == "parse" {
		return json.NewEncoder(os.Stdout).Encode(request)
	}
	var conversations [][]api.Message
	if err := json.NewDecoder(os.Stdin).Decode(&conversations); err != nil {
		return err
	}
	parsed, err := template.Parse(request.Template)
	if err != nil {
		return err
	}
	texts := []string{}
	for _, messages := range conversations {
		var text bytes.Buffer
		if err := parsed.Execute(&text, template.Values{Messages: messages}); err != nil {
			return err
		}
		texts = append(texts, text.String())
	}
	return json.NewEncoder(os.Stdout).Encode(texts)
}

func read(path string) (*api.CreateRequest, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	modelfile, err := parser.ParseFile(file)
	if err != nil {
		return nil, err
	}
	return modelfile.CreateRequest(filepath.Dir(path))
}
